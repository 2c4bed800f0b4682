# A static binary in an image that holds nothing else but certificates and time zones.
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags="-s -w" -o /parley ./server && mkdir /data

FROM gcr.io/distroless/static-debian12:nonroot
COPY --from=build /parley /parley
COPY --from=build --chown=nonroot:nonroot /data /data
# Everything Parley keeps, but for the database when that is PostgreSQL, is in this volume.
ENV PARLEY_DATA_DIR=/data PARLEY_LISTEN=0.0.0.0:8008
VOLUME /data
EXPOSE 8008 8448
ENTRYPOINT ["/parley"]
