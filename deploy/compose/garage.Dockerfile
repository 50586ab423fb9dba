# The image of garage, an object store that speaks S3, with the same frame as that of cairn. Built from
# the root of the repository:
#
#   docker build -f deploy/compose/garage.Dockerfile -t cairn-garage:2.5.0 .
#
# FROM_WHAT=prebuilt takes the binary from `garage` in the context.
ARG RUST=rust:1.95.0-slim-bookworm
ARG FROM_WHAT=source

FROM ${RUST} AS source
RUN apt-get update && apt-get install -y --no-install-recommends make
ENV CARGO_PROFILE_RELEASE_STRIP=debuginfo
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    cargo install garage --version 2.5.0 --locked --root /garage-build \
    --no-default-features --features bundled-libs,sqlite && mv /garage-build/bin/garage /garage

FROM ${RUST} AS prebuilt
COPY garage /garage

FROM ${FROM_WHAT} AS root
COPY deploy/image-root /
RUN /image-root /garage

FROM scratch
COPY --from=root /image/ /
USER 65532:65532
ENV GARAGE_CONFIG_FILE=/etc/garage.toml
EXPOSE 3900
ENTRYPOINT ["/bin/garage"]
CMD ["server"]
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=3 \
    CMD ["/bin/garage", "status"]
