"""Media to fixed condition features: poses, and pluggable video features with a time axis."""

from cdcd.features.extract import make_video_feature, stream_video_features

__all__ = ["make_video_feature", "stream_video_features"]
