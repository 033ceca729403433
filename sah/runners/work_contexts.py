"""One context of a worker's work, prefilled once for each pattern that a setting asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sah.adapters.context_cache import ContextCache
from sah.adapters.huggingface import ModelAdapterHF
from sah.errors import SahError
from sah.runners.session import Session
from sah.runners.tasks import ContextWork, GroupSpec
from sah.sparse_attention.prefill.config import PrefillConfig


class WorkContexts:
    """The caches of one context while it is at work.

    Args:
        spec: The group.
        work: The context and what is still to do.
        session: Caches of the process.
        adapter: The dense adapter.
        adapter_of: Gives the adapter of a setting by its number.
    """

    def __init__(
        self,
        spec: GroupSpec,
        work: ContextWork,
        session: Session,
        adapter: ModelAdapterHF,
        adapter_of: Callable[[int], ModelAdapterHF],
    ) -> None:
        self.adapter = adapter
        self._spec, self._work, self._session, self._adapter_of = spec, work, session, adapter_of
        self._dense: ContextCache | None = None
        """The dense prefill, kept while a later part compares with it."""

    def parts(self) -> Iterator[ContextWork]:
        """Part the work by prefill, the dense one first."""
        for prefill in self._spec.prefills_of(self._work):

            def is_of(setting: int, index: int, forced: bool, prefill: PrefillConfig | None = prefill) -> bool:
                return self._spec.settings[setting].prefill == prefill

            part = self._work.only(is_of)
            if part is not None:
                yield part

    def get(self, part: ContextWork) -> tuple[ContextCache, bool]:
        """Return a part's cache, and whether it was there already.

        Args:
            part: Out of `parts`.

        Raises:
            SahError: If the context cannot be prefilled.
        """
        return self._get(self._prefill_of(part))

    def reference(self, part: ContextWork) -> ContextCache | None:
        """Return the dense prefill for a part that is to be compared with dense attention.

        Args:
            part: Out of `parts`.

        Returns:
            The cache; None where the part's own is dense, or it has nothing to compare.

        Raises:
            SahError: If the context cannot be prefilled.
        """
        if self._prefill_of(part) is None or not part.forced:
            return None
        return self._dense or self._get(None)[0]

    def _get(self, prefill: PrefillConfig | None) -> tuple[ContextCache, bool]:
        if prefill is None and self._dense is not None:
            return self._dense, True
        group, text = self._spec.context_group, self._work.example.context
        observers = self._observers(prefill)
        cache, reused = self._session.contexts.get(group, text, self.adapter.prefill, prefill, observers)
        if prefill is None and any(self._spec.settings[setting].prefill for setting, _ in self._work.forced):
            self._dense = cache
        return cache, reused

    def _observers(self, prefill: PrefillConfig | None) -> list[ModelAdapterHF]:
        """List the adapters of settings that look at something of this prefill."""
        found: dict[int, ModelAdapterHF] = {}
        for number in dict.fromkeys(setting for setting, _ in (*self._work.pending, *self._work.forced)):
            setting = self._spec.settings[number]
            if setting.observes and setting.prefill == prefill:
                try:
                    found[number] = self._adapter_of(number)
                except SahError:
                    continue  # told where the setting's own questions are asked
        return list(found.values())

    def _prefill_of(self, part: ContextWork) -> PrefillConfig | None:
        return self._spec.settings[(*part.pending, *part.forced)[0][0]].prefill
