"""What every part may use: devices, the process, progress, messages, files, arrays, HTTP."""
