"""`make demo`: a prefill and a decode process of a real transformer that share nothing but the store."""
