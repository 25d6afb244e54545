# One image for both pools: the worker and the operator's command line.

FROM rust:1-bookworm AS build
WORKDIR /src
# Named one by one: the workspace's members and nothing else, so neither target/ nor .git is sent.
COPY Cargo.toml Cargo.lock ./
COPY common common
COPY gates gates
COPY producer producer
COPY worker worker
COPY admin admin
COPY tests tests
COPY bench bench
COPY demo demo
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked -p switchback-worker -p switchback-admin \
    && install -D -t /out target/release/switchback-worker target/release/switchback

FROM debian:bookworm-slim
# The index directory is made here so that a fresh volume mounted over it belongs to the user below.
RUN useradd --system --uid 10001 --no-create-home switchback \
    && install -d -o switchback -g switchback /var/lib/switchback/index
COPY --from=build /out/ /usr/local/bin/
USER switchback
ENTRYPOINT ["switchback-worker"]
CMD ["--config", "/etc/switchback/pool.toml"]
