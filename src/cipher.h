/*
 * Secrets at rest: AES-256-GCM, and the keys for it as text.
 *
 * Pure; the only room of outbox.so that uses OpenSSL.
 */
#ifndef OUTBOX_CIPHER_H
#define OUTBOX_CIPHER_H

#include <stdbool.h>
#include <stddef.h>

#define OUTBOX_KEY_SIZE 32
#define OUTBOX_KEY_ID 17		/* 16 hexadecimal digits and NUL */
#define OUTBOX_CIPHER_NONCE 12
#define OUTBOX_CIPHER_EXTRA (OUTBOX_CIPHER_NONCE + 16)	/* by how much more is sealed than was given: nonce and tag */

/* A key written as base64 (44 characters) or hexadecimal (64 digits), nothing before or behind it; false: it is neither. */
extern bool outbox_cipher_read_key(const char *text, size_t size, unsigned char *key);

/* A fingerprint: tells keys apart, and nothing about them. */
extern bool outbox_cipher_key_id(const unsigned char *key, char id[OUTBOX_KEY_ID]);

/*
 * Encrypts with a random nonce: `sealed` (size + OUTBOX_CIPHER_EXTRA bytes) is nonce, ciphertext, tag.  It opens only together with the same `about`: whose it is and
 * what.  False: OpenSSL refused.
 */
extern bool outbox_cipher_seal(const unsigned char *key, const char *about, const void *plain, size_t size, unsigned char *sealed);

/* The reverse: `plain` gets size - OUTBOX_CIPHER_EXTRA bytes.  False, and nothing in `plain`: another key, another `about`, or not what was sealed. */
extern bool outbox_cipher_open(const unsigned char *key, const char *about, const void *sealed, size_t size, unsigned char *plain);

/* Overwrites, and is never optimized away. */
extern void outbox_cipher_wipe(void *memory, size_t size);

#endif							/* OUTBOX_CIPHER_H */
