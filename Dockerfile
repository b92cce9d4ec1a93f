# docker build -t limn .                           for the CPU
# docker build -t limn --build-arg DEVICE=cuda .   for NVIDIA
# docker run --read-only --tmpfs /tmp -v limn-data:/data -p 7860:7860 -e LIMN_AUTH=user:password limn
FROM python:3.11-slim

ARG DEVICE=cpu
WORKDIR /app
COPY requirements.txt requirements-gpu.txt ./
COPY docker/install.sh docker/
RUN sh docker/install.sh "$DEVICE"
COPY . .

RUN useradd --uid 1000 --create-home limn && mkdir -p /data/outputs /data/weights && chown -R limn /data
USER limn
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp MPLCONFIGDIR=/tmp GRADIO_ANALYTICS_ENABLED=False
VOLUME /data
EXPOSE 7860
HEALTHCHECK --start-period=120s --interval=30s --timeout=10s CMD ["python", "docker/health.py"]
CMD ["sh", "docker/start.sh"]
