"""Published segmenters to compare the bundled ones with; shops never use them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from pipelines.errors import IntegrityError
from pipelines.vision.salient_net import MEAN, SIDE, STD


class PublishedU2NetP:
    """The published U²-Net-P (Qin et al. 2020) as an ONNX file, read and run by OpenCV."""

    def __init__(self, path: Path) -> None:
        """Raises IntegrityError if the file holds no network."""
        try:
            self._net = cv2.dnn.readNetFromONNX(str(path))
        except cv2.error as error:
            raise IntegrityError(f"{path}: expected U²-Net-P as ONNX ({error.err})") from error
        self._fused = self._net.getUnconnectedOutLayersNames()[0]  # the fused map comes first, then the six stages'

    def segment(self, image: np.ndarray) -> np.ndarray:
        """See `segmenters.Segmenter.segment`."""
        height, width = image.shape[:2]
        small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        small = (small - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
        self._net.setInput(small.transpose(2, 0, 1)[None])
        saliency = self._net.forward(self._fused)[0, 0]
        return cv2.resize(saliency, (width, height), interpolation=cv2.INTER_LINEAR)
