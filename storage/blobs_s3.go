package storage

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// BlobConfig says where blobs are kept: on disk in the data directory, or in a bucket if one is named.
type BlobConfig struct {
	// S3 is a bucket of Amazon S3 or anything compatible with it (MinIO, Ceph, Garage, R2).
	S3 S3Config `mapstructure:"s3"`
}

// S3Config names a bucket; off while Bucket is empty.
type S3Config struct {
	// Endpoint is a host name with an optional port, such as s3.eu-central-1.amazonaws.com, without a scheme.
	Endpoint string `mapstructure:"endpoint"`
	// Bucket must exist already; media is kept on disk while it is empty.
	Bucket string `mapstructure:"bucket"`
	// Prefix stands before the names of all objects, such as parley/.
	Prefix string `mapstructure:"prefix"`
	// Region may be empty where the endpoint has only one.
	Region string `mapstructure:"region"`
	// AccessKey is the ID of the key; with an empty one the usual environment variables of AWS or the machine's role are used.
	AccessKey string `mapstructure:"access_key"`
	// SecretKeyFile is a file with the secret key and nothing else.
	SecretKeyFile string `mapstructure:"secret_key_file"`
	// Insecure speaks HTTP instead of HTTPS.
	Insecure bool `mapstructure:"insecure"`
}

// OpenBlobs opens the store that cfg describes. dir holds the blobs, or, with a bucket, those that are being written.
func OpenBlobs(ctx context.Context, cfg BlobConfig, dir string) (Blobs, error) {
	if cfg.S3.Bucket == "" {
		return OpenDiskBlobs(dir)
	}
	return OpenS3Blobs(ctx, cfg.S3, dir, nil)
}

// S3Blobs keeps blobs as objects, <prefix>ab/cd…. They are staged in a folder on disk: the name of a blob is known only
// when all of it has been written.
type S3Blobs struct {
	client *minio.Client
	bucket string
	prefix string
	stages string
}

// OpenS3Blobs connects to a bucket and checks that it is there. Staged files lie in dir, which is emptied. transport may
// be nil.
func OpenS3Blobs(ctx context.Context, cfg S3Config, dir string, transport http.RoundTripper) (*S3Blobs, error) {
	if cfg.Prefix != "" && !strings.HasSuffix(cfg.Prefix, "/") {
		return nil, errors.New("the prefix of blobs in a bucket must end with a slash")
	}
	keys, err := s3Keys(cfg)
	if err != nil {
		return nil, err
	}
	client, err := minio.New(cfg.Endpoint, &minio.Options{Creds: keys, Secure: !cfg.Insecure, Region: cfg.Region, Transport: transport})
	if err != nil {
		return nil, fmt.Errorf("connect to the bucket: %w", err)
	}
	found, err := client.BucketExists(ctx, cfg.Bucket)
	if err == nil && !found {
		err = errors.New("there is no such bucket")
	}
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", cfg.Bucket, err)
	}
	stages := filepath.Join(dir, "tmp")
	if err := emptyDir(stages); err != nil {
		return nil, fmt.Errorf("open blob store: %w", err)
	}
	return &S3Blobs{client: client, bucket: cfg.Bucket, prefix: cfg.Prefix, stages: stages}, nil
}

func s3Keys(cfg S3Config) (*credentials.Credentials, error) {
	if cfg.AccessKey == "" {
		return credentials.NewChainCredentials([]credentials.Provider{&credentials.EnvAWS{}, &credentials.IAM{}}), nil
	}
	secret, err := os.ReadFile(cfg.SecretKeyFile)
	if err != nil {
		return nil, fmt.Errorf("read the bucket's secret key: %w", err)
	}
	return credentials.NewStaticV4(cfg.AccessKey, strings.TrimSpace(string(secret)), ""), nil
}

func (s *S3Blobs) key(hash BlobHash) string {
	name := hash.String()
	return s.prefix + name[:2] + "/" + name[2:]
}

// s3Error turns the answer for what is not there into ErrNoBlob.
func s3Error(doing string, err error) error {
	if err == nil {
		return nil
	}
	if answer := minio.ToErrorResponse(err); answer.StatusCode == http.StatusNotFound {
		return ErrNoBlob
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// Stage implements Blobs.
func (s *S3Blobs) Stage() (*StagedBlob, error) { return stage(s, s.stages) }

// Open implements Blobs. Only what is read is fetched: jumping about costs a request each time.
func (s *S3Blobs) Open(ctx context.Context, hash BlobHash) (Blob, error) {
	object, err := s.client.GetObject(ctx, s.bucket, s.key(hash), minio.GetObjectOptions{})
	if err == nil {
		_, err = object.Stat()
	}
	if err != nil {
		if object != nil {
			object.Close()
		}
		return nil, s3Error("open blob", err)
	}
	return object, nil
}

// Size implements Blobs.
func (s *S3Blobs) Size(ctx context.Context, hash BlobHash) (int64, error) {
	info, err := s.client.StatObject(ctx, s.bucket, s.key(hash), minio.StatObjectOptions{})
	return info.Size, s3Error("size of blob", err)
}

// Delete implements Blobs.
func (s *S3Blobs) Delete(ctx context.Context, hash BlobHash) error {
	err := s3Error("delete blob", s.client.RemoveObject(ctx, s.bucket, s.key(hash), minio.RemoveObjectOptions{}))
	if errors.Is(err, ErrNoBlob) {
		return nil
	}
	return err
}

// Each implements Blobs.
func (s *S3Blobs) Each(ctx context.Context, visit func(BlobMeta) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var failed error
	// To be read to its end even after an error: the sender waits.
	for object := range s.client.ListObjects(ctx, s.bucket, minio.ListObjectsOptions{Prefix: s.prefix, Recursive: true}) {
		if failed != nil {
			continue
		}
		if failed = object.Err; failed == nil {
			hash, err := ParseBlobHash(strings.Replace(strings.TrimPrefix(object.Key, s.prefix), "/", "", 1))
			if err != nil {
				continue // foreign
			}
			failed = visit(BlobMeta{Hash: hash, Size: object.Size, Written: object.LastModified})
		}
		if failed != nil {
			cancel()
		}
	}
	return failed
}

func (s *S3Blobs) put(ctx context.Context, hash BlobHash, path string, _ int64) error {
	_, err := s.client.FPutObject(ctx, s.bucket, s.key(hash), path, minio.PutObjectOptions{ContentType: "application/octet-stream"})
	return err
}
