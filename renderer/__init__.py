"""One request in, finished pictures out: check, extract, denoise, decode, score, record.

renderer = Renderer.open(model="toyland")
for picture in renderer.render(RenderRequest(prompt="a red sphere on grass", seed=7)):
    picture.save(folder)
"""

from renderer.examination import examine
from renderer.job import together
from renderer.picture import OnStep, Picture, Step
from renderer.renderer import Renderer
from renderer.sources import ROOT, folders_of

__all__ = ["ROOT", "OnStep", "Picture", "Renderer", "Step", "examine", "folders_of", "together"]
