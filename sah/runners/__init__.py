"""Runs points: composes model, attention, data, scores, store and tracker."""
