"""What all commands stand on, looked at one by one: ``cxr doctor``.

Every check tries the thing itself: it runs a network, decodes an image, writes a file. Libraries are imported
inside the checks, so that one that cannot be imported is a finding.
"""

from featcache.doctor.examination import examine
from featcache.doctor.finding import Finding

__all__ = ["Finding", "examine"]
