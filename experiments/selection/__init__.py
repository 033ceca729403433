"""Keys chosen by query head against keys chosen by KV head."""
