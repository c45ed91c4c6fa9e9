"""What prefuse finds on this machine, and whether its kernels compile: `python -m prefuse doctor`."""

from prefuse.doctor.examination import Finding, Report, add_arguments, findings, main, report

__all__ = ["Finding", "Report", "add_arguments", "findings", "main", "report"]
