"""`make bench-engines`: real vLLM engines, with the store's connector and with others', side by side in one run."""
