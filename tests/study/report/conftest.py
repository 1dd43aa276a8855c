"""Which test covers a module that has none of its own name.

_canvas: tests/study/report/test_canvas.py
_figures: tests/study/report/test_pictures.py
_loggers: tests/study/report/test_loggers.py
_numbers: tests/study/report/test_numbers.py
_origin: tests/study/report/test_recorder.py
_page: tests/study/report/test_page.py
_pictures: tests/study/report/test_pictures.py
_ranked: tests/study/report/test_recorder.py
_sections: tests/study/report/test_page.py
_texts: tests/study/report/test_texts.py
_variants: tests/study/report/test_page.py
history: tests/study/report/test_recorder.py
report: tests/study/report/test_page.py
"""
