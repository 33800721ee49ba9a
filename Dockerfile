# syntax=docker/dockerfile:1
# The server as an image: one stripped binary on Debian, run by a user without rights, on a root file system that may be read-only.
#
#   docker build -t lsqd .
#   docker compose up
#
# In a container the server listens on all of the container's addresses, so it asks for a key or --insecure (LSQD_INSECURE=true): the image does
# not set it, because only whoever publishes the port knows who can reach it. See compose.yaml.

FROM rust:1.95-slim-trixie AS build
WORKDIR /build
ENV CARGO_PROFILE_RELEASE_STRIP=symbols

# The dependencies alone: this layer is rebuilt only when they change. The manifest's tests and benchmarks are left out, because their
# files are not here; what is built does not depend on them.
COPY Cargo.toml Cargo.lock ./
RUN awk '/^\[/ { skip = /^\[\[(bench|test|example)\]\]/ } !skip' Cargo.toml > manifest && mv manifest Cargo.toml \
    && mkdir src && echo 'fn main() {}' > src/main.rs && touch src/lib.rs \
    && cargo build --release --locked \
    && rm -r src

COPY openapi.yaml ./
COPY migrations migrations
COPY src src
# The copies keep their dates, which may be older than the build above.
RUN touch src/lib.rs src/main.rs && cargo build --release --locked

FROM debian:trixie-slim
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin lsqd \
    && install --directory --owner=lsqd --group=lsqd --mode=0700 /data
COPY --from=build /build/target/release/lsqd /usr/local/bin/lsqd
COPY LICENSE-MIT LICENSE-APACHE /usr/share/doc/lsqd/

ENV LSQD_DATABASE=/data/lsqd.db \
    LSQD_LISTEN=0.0.0.0:8080
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8080
STOPSIGNAL SIGTERM
# The first start after a crash replays the log of every model; until then the server is alive, but not ready.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD ["lsqd", "health"]
ENTRYPOINT ["lsqd"]
CMD ["serve"]
