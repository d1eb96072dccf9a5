"""What our pages share: colours, charts, the heat map; and how a page becomes one file."""

from dwellmoe.web.page import page_template

__all__ = ["page_template"]
