"""Models in forms that other engines run: OpenVINO, and in parts ONNX Runtime."""
