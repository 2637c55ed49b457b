/*
 * Encryption of secrets at rest.
 *
 * AES-256 in Galois/Counter Mode (NIST SP 800-38D), by OpenSSL.  A record has a random nonce of its own: with 96 bits, 2^32 records under one key are safe (§8.3), and
 * a database has thousands.  Whose record it is goes in as associated data, so that one put in the place of another does not open.
 */
#include "cipher.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <limits.h>
#include <string.h>

#define TAG (OUTBOX_CIPHER_EXTRA - OUTBOX_CIPHER_NONCE)

/* 64 digits, either case. */
static bool
read_hex(const char *text, unsigned char *key)
{
	for (int i = 0; i < 2 * OUTBOX_KEY_SIZE; i++)
	{
		char		c = text[i];
		int			digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;

		if (digit < 0)
			return false;
		key[i / 2] = (unsigned char) (i % 2 == 0 ? digit << 4 : key[i / 2] | digit);
	}
	return true;
}

/* 43 characters of the alphabet and one "=": EVP_DecodeBlock() alone would trim white space, and take "=" anywhere. */
static bool
read_base64(const char *text, unsigned char *key)
{
	static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	unsigned char bytes[OUTBOX_KEY_SIZE + 1];	/* with the byte that "=" stands for */
	bool		good = text[43] == '=';

	for (int i = 0; i < 43; i++)
		good = good && text[i] != '\0' && strchr(alphabet, text[i]) != NULL;
	good = good && EVP_DecodeBlock(bytes, (const unsigned char *) text, 44) == sizeof(bytes);
	if (good)
		memcpy(key, bytes, OUTBOX_KEY_SIZE);
	OPENSSL_cleanse(bytes, sizeof(bytes));
	return good;
}

bool
outbox_cipher_read_key(const char *text, size_t size, unsigned char *key)
{
	return size == 44 ? read_base64(text, key) : size == 2 * OUTBOX_KEY_SIZE && read_hex(text, key);
}

bool
outbox_cipher_key_id(const unsigned char *key, char id[OUTBOX_KEY_ID])
{
	static const char purpose[] = "outbox key id";
	static const char hex[] = "0123456789abcdef";
	unsigned char digest[EVP_MAX_MD_SIZE];
	EVP_MD_CTX *context = EVP_MD_CTX_new();
	bool		good = context != NULL && EVP_DigestInit_ex(context, EVP_sha256(), NULL) &&
		EVP_DigestUpdate(context, purpose, sizeof(purpose)) &&
		EVP_DigestUpdate(context, key, OUTBOX_KEY_SIZE) && EVP_DigestFinal_ex(context, digest, NULL);

	EVP_MD_CTX_free(context);
	for (int i = 0; good && i < OUTBOX_KEY_ID - 1; i++)
		id[i] = hex[i % 2 == 0 ? digest[i / 2] >> 4 : digest[i / 2] & 15];
	id[OUTBOX_KEY_ID - 1] = '\0';
	return good;
}

bool
outbox_cipher_seal(const unsigned char *key, const char *about, const void *plain, size_t size, unsigned char *sealed)
{
	unsigned char *text = sealed + OUTBOX_CIPHER_NONCE;
	EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
	int			written;
	bool		good = context != NULL && size <= INT_MAX - OUTBOX_CIPHER_EXTRA &&
		RAND_bytes(sealed, OUTBOX_CIPHER_NONCE) == 1 &&
		EVP_EncryptInit_ex(context, EVP_aes_256_gcm(), NULL, key, sealed) &&
		EVP_EncryptUpdate(context, NULL, &written, (const unsigned char *) about, (int) strlen(about)) &&
		EVP_EncryptUpdate(context, text, &written, plain, (int) size) && written == (int) size &&
		EVP_EncryptFinal_ex(context, text + size, &written) &&
		EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, TAG, text + size);

	EVP_CIPHER_CTX_free(context);	/* cleanses the key */
	return good;
}

bool
outbox_cipher_open(const unsigned char *key, const char *about, const void *sealed, size_t size, unsigned char *plain)
{
	const unsigned char *bytes = sealed;
	EVP_CIPHER_CTX *context;
	size_t		text;
	int			written;
	bool		good;

	if (size < OUTBOX_CIPHER_EXTRA || size > INT_MAX)
		return false;
	text = size - OUTBOX_CIPHER_EXTRA;
	context = EVP_CIPHER_CTX_new();
	good = context != NULL &&
		EVP_DecryptInit_ex(context, EVP_aes_256_gcm(), NULL, key, bytes) &&
		EVP_DecryptUpdate(context, NULL, &written, (const unsigned char *) about, (int) strlen(about)) &&
		EVP_DecryptUpdate(context, plain, &written, bytes + OUTBOX_CIPHER_NONCE, (int) text) &&
		EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, TAG, (void *) (bytes + OUTBOX_CIPHER_NONCE + text)) &&
		EVP_DecryptFinal_ex(context, plain + written, &written);
	EVP_CIPHER_CTX_free(context);
	if (!good)
		OPENSSL_cleanse(plain, text);	/* nobody may use what did not prove genuine */
	return good;
}

void
outbox_cipher_wipe(void *memory, size_t size)
{
	OPENSSL_cleanse(memory, size);
}
