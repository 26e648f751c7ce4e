"""Parts of fetch-images: addresses that may be asked, request limits, downloads, workers, the ledger."""
