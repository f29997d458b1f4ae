"""Time: durations, the clock that lays them out in steps, numbers as functions of time, seeds of streams."""
