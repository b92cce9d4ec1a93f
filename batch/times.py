"""Times and numbers in words."""


def duration(seconds: float) -> str:
    """As people say it: `2.5 s`, `45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def counted(number: int, name: str) -> str:
    """`1 picture`, `2 pictures`."""
    return f"{number} {name}" if number == 1 else f"{number} {name}s"
