"""What every figure must be: each text within the page, and none on another."""

from matplotlib.text import Text


def texts_of(figure):
    """Every text that is shown, with its box in pixels."""
    outside = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            outside |= {
                tick.label1 for tick in ticks if not low <= tick.get_loc() <= high or not tick.label1.get_visible()
            }
            outside |= {tick.label2 for tick in ticks}
    shown = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    boxes = {text: Text.get_window_extent(text) for text in shown if text not in outside}
    return {text: box for text, box in boxes.items() if box.width > 0}


def require_legible(figure):
    """Fail where a figure has hardly any text, or text that is cut off or lies on another."""
    figure.draw_without_rendering()
    boxes, page = texts_of(figure), figure.bbox
    assert len(boxes) > 4
    for text, box in boxes.items():
        assert min(box.x0 - page.x0, box.y0 - page.y0, page.x1 - box.x1, page.y1 - box.y1) > -1, text.get_text()
    shown = list(boxes.items())
    for n, (text, box) in enumerate(shown):
        for other, beside in shown[n + 1 :]:
            wide = min(box.x1, beside.x1) - max(box.x0, beside.x0)
            high = min(box.y1, beside.y1) - max(box.y0, beside.y0)
            assert wide <= 1 or high <= 1, (text.get_text(), other.get_text())
