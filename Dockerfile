# Training on NVIDIA GPUs. The host needs a driver for CUDA 12 and the NVIDIA Container Toolkit.
#   docker build -t cutmix_jax .
#   docker run --gpus all -v "$PWD/runs:/cutmix_jax/runs" cutmix_jax --config configs/cifar.py
FROM python:3.11-slim
WORKDIR /cutmix_jax
COPY requirements.txt constraints.txt ./
RUN python -m pip install --no-cache-dir "jax[cuda12]" -r requirements.txt -c constraints.txt
COPY . .
ENTRYPOINT ["python", "main.py"]
