# The commands of the house; `just` lists them.

default:
    @just --list

# Everything that has to hold before a change is taken; the same that CI runs
check:
    .ci/run

# Run the server; arguments go to it: `just run --listen 127.0.0.1:9000`
run *arguments:
    cargo run --release --locked -- {{ arguments }}

# Run the tests; arguments pick some: `just test forgetting_factor`
test *arguments:
    cargo test --locked {{ arguments }}

# Format the code
fmt:
    cargo fmt

# Time fits beside scikit-learn's and statsmodels'; arguments pick some: `just bench tall ridge`
bench *arguments:
    bench/run {{ arguments }}

# Time rows learnt online beside River's; arguments pick numbers of predictors: `just bench-online 10 50`
bench-online *arguments:
    bench/run-online {{ arguments }}

# Time uploads beside a CSV parser and the disk
bench-upload:
    cargo bench --locked --bench upload

# Time durable updates beside SQLite; arguments pick parts: `just bench-updates single stream models`
bench-updates *arguments:
    cargo bench --locked --bench updates -- {{ arguments }}

# Start the release binary and run the README's tour against it
smoke:
    cargo build --release --locked
    .ci/smoke

# Compare the server's figures with those of scikit-learn, SciPy and statsmodels; arguments pick some: `just compare ridge lasso`
compare *arguments:
    cargo build --release --locked
    .ci/python compare "${CARGO_TARGET_DIR:-target}/release/lsqd" {{ arguments }}

# Look for known vulnerabilities in the dependencies; needs the advisory database from GitHub
advisories:
    cargo deny --locked check advisories

# Build the image
image:
    docker build --tag lsqd .
