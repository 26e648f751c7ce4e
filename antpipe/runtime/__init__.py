"""What any part may need: devices, the process, progress, files, messages."""
