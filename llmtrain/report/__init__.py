"""What a run tells: its folder, its metrics, its progress on screen."""
