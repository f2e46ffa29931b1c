"""What train_sr.py, evaluate_sr.py and compare_convergence.py share.

settings   every setting of a run and its default
data       photographs and folders -> pairs of images -> batches
images     one image: read it, luma, super-resolve it, PSNR and SSIM
losses     the plain losses and PSPL behind one call
process    this process among those of torchrun
checkpoint a run on disk: written atomically, read with sentences for errors
records    metrics.csv and TensorBoard
pictures   curves and attention maps
trainer    the loop
"""
