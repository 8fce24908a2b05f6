// SPDX-License-Identifier: Apache-2.0
#include "daemon/cluster/pki.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509.h>
#include <openssl/x509_vfy.h>
#include <openssl/x509v3.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/file.h"

#define DAY_S 86400
#define SKEW_S 3600 // valid from an hour ago: a node's clock may be a little behind
#define SERIAL_BYTES 16
#define MAX_PEM_BYTES (1 << 20)
#define CA_PREFIX "thaw cluster " // of the CA's common name; the cluster's name follows

static void free_key(EVP_PKEY **k)
{
	EVP_PKEY_free(*k);
}
static void free_cert(X509 **c)
{
	X509_free(*c);
}
static void free_bio(BIO **b)
{
	BIO_free(*b);
}
static void free_names(GENERAL_NAMES **n)
{
	GENERAL_NAMES_free(*n);
}
#define _cleanup_key_ __attribute__((cleanup(free_key)))
#define _cleanup_cert_ __attribute__((cleanup(free_cert)))
#define _cleanup_bio_ __attribute__((cleanup(free_bio)))
#define _cleanup_names_ __attribute__((cleanup(free_names)))

/* What the library says last, in its words; its queue is empty afterwards. */
static int fail(struct base_error *e, const char *what)
{
	unsigned long code = ERR_peek_last_error();
	const char *reason = code ? ERR_reason_error_string(code) : NULL;
	ERR_clear_error();
	return base_error_set(e, -EIO, "%s: %s", what, reason ? reason : "OpenSSL gives no reason");
}

/* ---- files ---- */

static int write_new(const char *path, const char *data, size_t bytes, struct base_error *e)
{
	_cleanup_close_ int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0 && errno == EEXIST)
		return base_error_set(
			e, -EEXIST, "%s is there already, and nothing is overwritten: move it away first", path);
	if (fd < 0)
		return base_error_set(e, -errno, "%s: %s", path, strerrordesc_np(errno));
	int status = base_file_write(fd, data, bytes);
	if (!status && fsync(fd) < 0)
		status = -errno;
	if (!status)
		return 0;
	unlink(path);
	return base_error_set(e, status, "%s: %s", path, strerrordesc_np(-status));
}

static int refuse_existing(const char *path, struct base_error *e)
{
	struct stat st;
	if (lstat(path, &st) < 0)
		return errno == ENOENT ? 0 : base_error_set(e, -errno, "%s: %s", path, strerrordesc_np(errno));
	return base_error_set(e, -EEXIST, "%s is there already, and nothing is overwritten: move it away first", path);
}

/* The key first: a certificate without its key would only look whole. */
static int write_pair(const char *directory, const char *name, EVP_PKEY *key, X509 *cert, struct base_error *e)
{
	char key_path[PATH_MAX], cert_path[PATH_MAX];
	_cleanup_bio_ BIO *k = BIO_new(BIO_s_mem()), *c = BIO_new(BIO_s_mem());
	char *data;
	snprintf(key_path, sizeof key_path, "%s/%s.key", directory, name);
	snprintf(cert_path, sizeof cert_path, "%s/%s.crt", directory, name);
	if (!k || !c || !PEM_write_bio_PrivateKey(k, key, NULL, NULL, 0, NULL, NULL) || !PEM_write_bio_X509(c, cert))
		return fail(e, cert_path);
	int status = refuse_existing(cert_path, e);
	if (!status) {
		long n = BIO_get_mem_data(k, &data);
		status = write_new(key_path, data, (size_t)n, e);
	}
	if (status)
		return status;
	long n = BIO_get_mem_data(c, &data);
	status = write_new(cert_path, data, (size_t)n, e);
	if (status)
		unlink(key_path);
	return status;
}

static int open_pem(const char *path, BIO **ret_bio, struct base_error *e)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	if (fd < 0 || fstat(fd, &st) < 0)
		return base_error_set(e, -errno, "%s: %s", path, strerrordesc_np(errno));
	if (!S_ISREG(st.st_mode) || st.st_size <= 0 || st.st_size > MAX_PEM_BYTES)
		return base_error_set(e, -EINVAL, "%s: a PEM file of 1 to %d bytes is wanted", path, MAX_PEM_BYTES);
	_cleanup_free_ char *text = malloc((size_t)st.st_size);
	BIO *b = text ? BIO_new(BIO_s_mem()) : NULL;
	ssize_t n = b ? read(fd, text, (size_t)st.st_size) : -1;
	if (n <= 0 || BIO_write(b, text, (int)n) != (int)n) {
		BIO_free(b);
		return base_error_set(e, -EIO, "%s: cannot be read", path);
	}
	*ret_bio = b;
	return 0;
}

/* Nobody is asked for a password. */
static int no_password(char *out, int room, int writing, void *context)
{
	return -1;
}

static int read_cert(const char *path, X509 **ret_cert, struct base_error *e)
{
	_cleanup_bio_ BIO *b = NULL;
	int status = open_pem(path, &b, e);
	if (status)
		return status;
	*ret_cert = PEM_read_bio_X509(b, NULL, no_password, NULL);
	ERR_clear_error();
	return *ret_cert ? 0 : base_error_set(e, -EINVAL, "%s: holds no certificate", path);
}

static int read_key(const char *path, EVP_PKEY **ret_key, struct base_error *e)
{
	_cleanup_bio_ BIO *b = NULL;
	int status = open_pem(path, &b, e);
	if (status)
		return status;
	*ret_key = PEM_read_bio_PrivateKey(b, NULL, no_password, NULL);
	ERR_clear_error();
	return *ret_key ? 0 : base_error_set(e, -EINVAL, "%s: holds no private key without a password", path);
}

/* ---- making certificates ---- */

static int add_extension(X509 *cert, X509 *issuer, int nid, const char *value)
{
	X509V3_CTX context;
	X509V3_set_ctx_nodb(&context);
	X509V3_set_ctx(&context, issuer, cert, NULL, NULL, 0);
	X509_EXTENSION *x = X509V3_EXT_conf_nid(NULL, &context, nid, value);
	int ok = x && X509_add_ext(cert, x, -1);
	X509_EXTENSION_free(x);
	return ok ? 0 : -EIO;
}

static int set_serial(X509 *cert)
{
	unsigned char bytes[SERIAL_BYTES];
	if (RAND_bytes(bytes, sizeof bytes) != 1)
		return -EIO;
	bytes[0] &= 0x7f;
	bytes[0] |= 0x40; // positive, and never shorter
	BIGNUM *n = BN_bin2bn(bytes, sizeof bytes, NULL);
	int ok = n && BN_to_ASN1_INTEGER(n, X509_get_serialNumber(cert));
	BN_free(n);
	return ok ? 0 : -EIO;
}

/* Version, serial number, subject, times and key: what all certificates have. */
static int fill(X509 *cert, EVP_PKEY *key, const char *common_name, const char *unit, uint32_t days)
{
	X509_NAME *subject = X509_get_subject_name(cert);
	if (!X509_set_version(cert, X509_VERSION_3) || set_serial(cert) < 0 || !X509_set_pubkey(cert, key) ||
		!X509_gmtime_adj(X509_getm_notBefore(cert), -SKEW_S) ||
		!X509_time_adj_ex(X509_getm_notAfter(cert), (int)days, 0, NULL) ||
		!X509_NAME_add_entry_by_txt(
			subject, "CN", MBSTRING_UTF8, (const unsigned char *)common_name, -1, -1, 0))
		return -EIO;
	if (unit && !X509_NAME_add_entry_by_txt(subject, "OU", MBSTRING_UTF8, (const unsigned char *)unit, -1, -1, 0))
		return -EIO;
	return 0;
}

static int make_directory(const char *directory, struct base_error *e)
{
	struct stat st;
	if (strlen(directory) + CLUSTER_NAME_BYTES + 8 > PATH_MAX)
		return base_error_set(e, -ENAMETOOLONG, "the directory's name is too long");
	if (mkdir(directory, 0700) == 0)
		return 0;
	if (errno != EEXIST)
		return base_error_set(e, -errno, "%s: %s", directory, strerrordesc_np(errno));
	if (stat(directory, &st) < 0 || !S_ISDIR(st.st_mode))
		return base_error_set(e, -ENOTDIR, "%s: not a directory", directory);
	return 0;
}

static int check_days(uint32_t days, struct base_error *e)
{
	if (days >= 1 && days <= CLUSTER_PKI_MAX_DAYS)
		return 0;
	return base_error_set(e, -EINVAL, "%u days: 1 to %u are possible", days, CLUSTER_PKI_MAX_DAYS);
}

int cluster_pki_init(const char *directory, const char *cluster, uint32_t days, struct base_error *e)
{
	char common_name[sizeof CA_PREFIX + CLUSTER_NAME_BYTES];
	int status = cluster_name_check("cluster", cluster, e);
	if (!status)
		status = check_days(days, e);
	if (!status)
		status = make_directory(directory, e);
	if (status)
		return status;
	snprintf(common_name, sizeof common_name, CA_PREFIX "%s", cluster);
	_cleanup_key_ EVP_PKEY *key = EVP_EC_gen("P-256");
	_cleanup_cert_ X509 *cert = X509_new();
	if (!key || !cert || fill(cert, key, common_name, NULL, days) < 0 ||
		!X509_set_issuer_name(cert, X509_get_subject_name(cert)) ||
		add_extension(cert, cert, NID_basic_constraints, "critical,CA:TRUE,pathlen:0") < 0 ||
		add_extension(cert, cert, NID_key_usage, "critical,keyCertSign,cRLSign") < 0 ||
		add_extension(cert, cert, NID_subject_key_identifier, "hash") < 0 ||
		!X509_sign(cert, key, EVP_sha256()))
		return fail(e, "making the CA");
	return write_pair(directory, "ca", key, cert, e);
}

/* ---- alternative names ---- */

static int add_name(GENERAL_NAMES *names, int type, const char *text)
{
	GENERAL_NAME *n = GENERAL_NAME_new();
	ASN1_IA5STRING *s = ASN1_IA5STRING_new();
	if (!n || !s || !ASN1_STRING_set(s, text, -1)) {
		GENERAL_NAME_free(n);
		ASN1_IA5STRING_free(s);
		return -ENOMEM;
	}
	GENERAL_NAME_set0_value(n, type, s);
	if (sk_GENERAL_NAME_push(names, n))
		return 0;
	GENERAL_NAME_free(n);
	return -ENOMEM;
}

static int add_ip(GENERAL_NAMES *names, ASN1_OCTET_STRING *ip)
{
	GENERAL_NAME *n = GENERAL_NAME_new();
	if (!n) {
		ASN1_OCTET_STRING_free(ip);
		return -ENOMEM;
	}
	GENERAL_NAME_set0_value(n, GEN_IPADD, ip);
	if (sk_GENERAL_NAME_push(names, n))
		return 0;
	GENERAL_NAME_free(n);
	return -ENOMEM;
}

static bool is_host_name(const char *text)
{
	size_t n = strlen(text);
	return n && n < 254 && strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._") == n &&
	       text[0] != '.' && text[0] != '-';
}

static int add_address(GENERAL_NAMES *names, const char *address, struct base_error *e)
{
	unsigned char bytes[16];
	int status;
	if (inet_pton(AF_INET, address, bytes) == 1 || inet_pton(AF_INET6, address, bytes) == 1) {
		ASN1_OCTET_STRING *ip = a2i_IPADDRESS(address);
		status = ip ? add_ip(names, ip) : -ENOMEM;
	} else if (is_host_name(address)) {
		status = add_name(names, GEN_DNS, address);
	} else {
		return base_error_set(e, -EINVAL,
			"address \"%.100s\" is neither an IP address nor a host name (no port, no brackets)", address);
	}
	return status ? base_error_set(e, status, "no memory") : 0;
}

static int add_names(
	X509 *cert, const struct cluster_identity *identity, const struct cluster_pki_node *node, struct base_error *e)
{
	char uri[CLUSTER_URI_BYTES];
	_cleanup_names_ GENERAL_NAMES *names = GENERAL_NAMES_new();
	if (!names || add_name(names, GEN_URI, cluster_identity_print(identity, uri)) < 0 ||
		add_name(names, GEN_DNS, identity->name) < 0)
		return base_error_set(e, -ENOMEM, "no memory");
	for (uint32_t i = 0; i < node->addresses_count; i++) {
		int status = add_address(names, node->addresses[i], e);
		if (status)
			return status;
	}
	if (!X509_add1_ext_i2d(cert, NID_subject_alt_name, names, 0, X509V3_ADD_DEFAULT))
		return fail(e, "alternative names");
	return 0;
}

/* ---- nodes ---- */

struct authority {
	EVP_PKEY *key;
	X509 *cert;
	char cluster[CLUSTER_NAME_BYTES];
};

static void authority_finish(struct authority *a)
{
	EVP_PKEY_free(a->key);
	X509_free(a->cert);
}

static int authority_open(const char *directory, struct authority *a, struct base_error *e)
{
	char path[PATH_MAX], name[sizeof CA_PREFIX + CLUSTER_NAME_BYTES];
	snprintf(path, sizeof path, "%s/ca.crt", directory);
	int status = read_cert(path, &a->cert, e);
	if (status == -ENOENT)
		return base_error_set(e, -ENOENT, "%s is not there: `thawctl pki init` makes a CA", path);
	if (status)
		return status;
	int n = X509_NAME_get_text_by_NID(X509_get_subject_name(a->cert), NID_commonName, name, sizeof name);
	size_t prefix = strlen(CA_PREFIX);
	if (n < 0 || strncmp(name, CA_PREFIX, prefix) != 0 || cluster_name_check("cluster", name + prefix, NULL) < 0)
		return base_error_set(e, -EINVAL, "%s: not a CA that `thawctl pki init` made", path);
	memcpy(a->cluster, name + prefix, strlen(name + prefix) + 1); // a name: it fits
	if (X509_cmp_current_time(X509_get0_notAfter(a->cert)) <= 0)
		return base_error_set(e, -EKEYEXPIRED, "%s has expired: make another CA, and new certificates", path);
	snprintf(path, sizeof path, "%s/ca.key", directory);
	status = read_key(path, &a->key, e);
	if (!status && X509_check_private_key(a->cert, a->key) != 1) {
		ERR_clear_error();
		status = base_error_set(e, -EINVAL, "%s is not the key of ca.crt beside it", path);
	}
	return status;
}

/* A certificate that outlives its CA is not accepted anyhow: better that its own date says so. */
static int limit_end(X509 *cert, X509 *ca)
{
	const ASN1_TIME *end = X509_get0_notAfter(ca);
	if (ASN1_TIME_compare(X509_get0_notAfter(cert), end) <= 0)
		return 0;
	return X509_set1_notAfter(cert, end) ? 0 : -EIO;
}

static int sign_node(X509 *cert, EVP_PKEY *key, const struct authority *a, const struct cluster_identity *identity,
	const struct cluster_pki_node *node, struct base_error *e)
{
	const char *usage = identity->role == CLUSTER_ROLE_CLIENT ? "clientAuth" : "serverAuth,clientAuth";
	if (fill(cert, key, identity->name, cluster_role_name(identity->role), node->days) < 0 ||
		limit_end(cert, a->cert) < 0 || !X509_set_issuer_name(cert, X509_get_subject_name(a->cert)) ||
		add_extension(cert, a->cert, NID_basic_constraints, "critical,CA:FALSE") < 0 ||
		add_extension(cert, a->cert, NID_key_usage, "critical,digitalSignature") < 0 ||
		add_extension(cert, a->cert, NID_ext_key_usage, usage) < 0 ||
		add_extension(cert, a->cert, NID_subject_key_identifier, "hash") < 0 ||
		add_extension(cert, a->cert, NID_authority_key_identifier, "keyid:always") < 0)
		return fail(e, "making the certificate");
	int status = add_names(cert, identity, node, e);
	if (status)
		return status;
	return X509_sign(cert, a->key, EVP_sha256()) ? 0 : fail(e, "signing the certificate");
}

int cluster_pki_issue(const char *directory, const struct cluster_pki_node *node, struct base_error *e)
{
	__attribute__((cleanup(authority_finish))) struct authority a = {0};
	struct cluster_identity identity = {.role = node->role};
	int status = cluster_name_check("node", node->name, e);
	if (!status && strcmp(node->name, "ca") == 0)
		status = base_error_set(e, -EINVAL, "node: \"ca\" is the name of the CA's own files");
	if (!status && (node->role == CLUSTER_ROLE_NONE || node->addresses_count > CLUSTER_PKI_MAX_ADDRESSES))
		status = base_error_set(e, -EINVAL, "role %s, %u addresses (at most %u)", cluster_role_name(node->role),
			node->addresses_count, CLUSTER_PKI_MAX_ADDRESSES);
	if (!status)
		status = check_days(node->days, e);
	if (!status)
		status = make_directory(directory, e);
	if (!status)
		status = authority_open(directory, &a, e);
	if (status)
		return status;
	snprintf(identity.name, sizeof identity.name, "%s", node->name);
	memcpy(identity.cluster, a.cluster, sizeof identity.cluster);
	_cleanup_key_ EVP_PKEY *key = EVP_EC_gen("P-256");
	_cleanup_cert_ X509 *cert = X509_new();
	if (!key || !cert)
		return fail(e, "making a key");
	status = sign_node(cert, key, &a, &identity, node, e);
	return status ? status : write_pair(directory, node->name, key, cert, e);
}

/* ---- checking ---- */

static uint64_t seconds_of(const ASN1_TIME *t)
{
	struct tm tm;
	if (!ASN1_TIME_to_tm(t, &tm))
		return 0;
	time_t s = timegm(&tm);
	return s > 0 ? (uint64_t)s : 0;
}

static void find_identity(X509 *cert, struct cluster_identity *ret_identity)
{
	_cleanup_names_ GENERAL_NAMES *names = X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL);
	for (int i = 0; names && i < sk_GENERAL_NAME_num(names); i++) {
		const GENERAL_NAME *n = sk_GENERAL_NAME_value(names, i);
		if (n->type != GEN_URI)
			continue;
		const ASN1_IA5STRING *uri = n->d.uniformResourceIdentifier;
		if (cluster_identity_parse((const char *)ASN1_STRING_get0_data(uri), (size_t)ASN1_STRING_length(uri),
			    ret_identity) == 0)
			return;
	}
}

static char *date(uint64_t s, char out[static 32])
{
	struct tm tm;
	time_t t = (time_t)s;
	if (!gmtime_r(&t, &tm) || !strftime(out, 32, "%F %T UTC", &tm))
		snprintf(out, 32, "?");
	return out;
}

static int check_chain(
	X509 *ca, X509 *cert, uint64_t now_s, const char *ca_path, const char *cert_path, struct base_error *e)
{
	X509_STORE *store = X509_STORE_new();
	X509_STORE_CTX *context = X509_STORE_CTX_new();
	int status = 0;
	if (!store || !context || !X509_STORE_add_cert(store, ca) || !X509_STORE_CTX_init(context, store, cert, NULL)) {
		status = fail(e, cert_path);
	} else {
		X509_STORE_CTX_set_time(context, 0, (time_t)now_s);
		if (X509_verify_cert(context) != 1)
			status = base_error_set(e, -EKEYREJECTED, "%s is not signed by %s: %s", cert_path, ca_path,
				X509_verify_cert_error_string(X509_STORE_CTX_get_error(context)));
	}
	ERR_clear_error();
	X509_STORE_CTX_free(context);
	X509_STORE_free(store);
	return status;
}

int cluster_pki_check(const char *ca_path, const char *cert_path, const char *key_path, uint64_t now_s,
	struct cluster_pki_info *ret_info, struct base_error *e)
{
	_cleanup_cert_ X509 *ca = NULL, *cert = NULL;
	_cleanup_key_ EVP_PKEY *key = NULL;
	struct cluster_pki_info info = {0};
	char when[32], now[32];
	int status = read_cert(ca_path, &ca, e);
	if (!status)
		status = read_cert(cert_path, &cert, e);
	if (!status)
		status = read_key(key_path, &key, e);
	if (status)
		return status;
	if (X509_check_private_key(cert, key) != 1) {
		ERR_clear_error();
		return base_error_set(e, -EKEYREJECTED, "%s is not the key of %s", key_path, cert_path);
	}
	info.not_before_s = seconds_of(X509_get0_notBefore(cert));
	info.not_after_s = seconds_of(X509_get0_notAfter(cert));
	if (now_s > info.not_after_s)
		return base_error_set(e, -EKEYEXPIRED, "%s expired on %s; it is %s here: issue a new one", cert_path,
			date(info.not_after_s, when), date(now_s, now));
	if (now_s < info.not_before_s)
		return base_error_set(e, -EKEYREJECTED, "%s is valid from %s on; it is %s here: look at the clock",
			cert_path, date(info.not_before_s, when), date(now_s, now));
	if (now_s > seconds_of(X509_get0_notAfter(ca)))
		return base_error_set(e, -EKEYEXPIRED, "%s expired on %s: make another CA, and new certificates",
			ca_path, date(seconds_of(X509_get0_notAfter(ca)), when));
	status = check_chain(ca, cert, now_s, ca_path, cert_path, e);
	if (status)
		return status;
	find_identity(cert, &info.identity);
	*ret_info = info;
	return 0;
}
