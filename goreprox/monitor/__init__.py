"""What programs that watch the processes of a machine ask for over HTTP."""
