"""What the experiment's commands share.

settings   every setting of a run and its default
data       photographs and folders -> pairs of images -> batches
images     one image: read it, luma, super-resolve it, PSNR and SSIM
losses     the plain loss, PSPL and its two controls behind one call
loop       the training loop, on Lightning's Fabric
figures    attention over the run, curves, close-ups
"""
