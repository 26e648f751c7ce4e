"""The store: domains, their artefacts and files, staleness, and the commands that build what is missing."""
