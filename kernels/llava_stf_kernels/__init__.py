"""Kernels of llava_stf: one public function per operation. Holds no operation yet; needs torch only."""

__all__: list[str] = []
