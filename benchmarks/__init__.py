"""Speed, measured: one module per stage, each against what people use today, in the same process tree.

Rules: one BLAS thread, baseline and ours alternate, medians, a run at a tenth of the size gives the growth exponent, results as JSON.
"""
