"""Read the frames of a video from wherever the user has it."""

from llava_stf.videos.frames import DEFAULT_FRAMES, VIDEO_SUFFIXES, Video, VideoSource, is_video

__all__ = ["DEFAULT_FRAMES", "VIDEO_SUFFIXES", "Video", "VideoSource", "is_video"]
