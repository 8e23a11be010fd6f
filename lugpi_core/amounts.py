"""Amounts in words, for lines that say what a run takes."""


def size(count: int) -> str:
    """Return a number of bytes in megabytes, or from one gigabyte on in these: ``3.4 MB``, ``1,204.25 GB``."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """Return a time in the largest unit of which there are two or more; of days three: ``40 s``, ``119 minutes``, ``71.9 hours``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 72 * 3600 else f"{seconds / 86400:.1f} days"
