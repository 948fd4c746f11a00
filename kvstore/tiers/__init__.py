"""The ladder's tiers: what each holds (base.Tier) and how bytes reach it (base.Medium)."""
