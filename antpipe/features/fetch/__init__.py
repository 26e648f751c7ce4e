"""Parts of the stage fetch-images: addresses, turns, downloads, the ledger."""
