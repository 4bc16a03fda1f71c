"""Maximum likelihood of given answers."""
