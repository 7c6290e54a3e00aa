"""The method in plain torch: OKS, assignment, losses, decode. Nothing here knows Ultralytics."""
