"""The training machine: walks the timeline, steps, evaluates and yields events. It knows no files and no terminal."""
