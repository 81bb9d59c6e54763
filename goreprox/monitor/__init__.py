"""What programs that watch the processes of a machine, and people, ask for over HTTP."""
