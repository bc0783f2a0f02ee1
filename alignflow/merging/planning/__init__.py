"""What a merge will do, from headers alone: no weight is read, no torch is imported.

Whatever cannot be merged is refused here, before the first byte is written.
"""
