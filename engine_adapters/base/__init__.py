"""What adapters share: settings, where an engine's blocks lie, who its weights are, and the store without waiting."""
