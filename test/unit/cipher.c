/*
 * cipher: a published vector, and whatever must not open.
 */
#define _GNU_SOURCE				/* memmem */
#include "cipher.h"

#include <stdlib.h>
#include <string.h>

#include "tap.h"

static const unsigned char key[OUTBOX_KEY_SIZE] = "0123456789abcdef0123456789abcde";
static const unsigned char other_key[OUTBOX_KEY_SIZE] = "0123456789abcdef0123456789abcdf";

static size_t
bytes(const char *hex, unsigned char *out)
{
	size_t		n = strlen(hex) / 2;

	for (size_t i = 0; i < n; i++)
		out[i] = (unsigned char) strtol((char[]) {hex[2 * i], hex[2 * i + 1], 0}, NULL, 16);
	return n;
}

/* McGrew and Viega, "The Galois/Counter Mode of Operation", test case 15 has no associated data; 16 has some, but with NULs in it, which ours never has. */
static void
vector(void)
{
	unsigned char k[OUTBOX_KEY_SIZE];
	unsigned char sealed[128];
	unsigned char plain[64];
	unsigned char expected[64];
	size_t		size;
	size_t		n;

	bytes("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308", k);
	size = bytes("cafebabefacedbaddecaf888"
				 "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad"
				 "b094dac5d93471bdec1a502270e3cc6c", sealed);
	n = bytes("d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255", expected);
	ok(outbox_cipher_open(k, "", sealed, size, plain) && n == size - OUTBOX_CIPHER_EXTRA && memcmp(plain, expected, n) == 0, "the published vector opens");
}

static void
round_trips(void)
{
	static const size_t sizes[] = {0, 1, 15, 16, 17, 32, 64, 8192};
	unsigned char *plain = malloc(8192);
	unsigned char *opened = malloc(8192);
	unsigned char *sealed = malloc(8192 + OUTBOX_CIPHER_EXTRA);
	unsigned char *again = malloc(8192 + OUTBOX_CIPHER_EXTRA);

	for (size_t i = 0; i < 8192; i++)
		plain[i] = (unsigned char) (i * 7);
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
	{
		size_t		n = sizes[i];

		ok(outbox_cipher_seal(key, "signing:7", plain, n, sealed) &&
		   outbox_cipher_open(key, "signing:7", sealed, n + OUTBOX_CIPHER_EXTRA, opened) && memcmp(plain, opened, n) == 0, "%zu bytes there and back", n);
		ok(outbox_cipher_seal(key, "signing:7", plain, n, again) && memcmp(sealed, again, n + OUTBOX_CIPHER_EXTRA) != 0, "%zu bytes: sealed otherwise each time", n);
	}
	free(plain);
	free(opened);
	free(sealed);
	free(again);
}

static void
refusals(void)
{
	static const char text[] = "a secret of 32 bytes, or about so";
	static const unsigned char zero[sizeof(text)];
	unsigned char sealed[sizeof(text) + OUTBOX_CIPHER_EXTRA];
	unsigned char opened[sizeof(text)];
	int			opens = 0;

	ok(outbox_cipher_seal(key, "signing:7", text, sizeof(text), sealed), "sealed");
	ok(memmem(sealed, sizeof(sealed), text, 8) == NULL, "nothing of the text is in it");
	memset(opened, 'x', sizeof(opened));
	ok(!outbox_cipher_open(other_key, "signing:7", sealed, sizeof(sealed), opened), "another key");
	ok(memcmp(opened, zero, sizeof(zero)) == 0, "leaves nothing behind");
	ok(!outbox_cipher_open(key, "signing:8", sealed, sizeof(sealed), opened), "another subscription's");
	ok(!outbox_cipher_open(key, "headers:7", sealed, sizeof(sealed), opened), "another kind");
	ok(!outbox_cipher_open(key, "", sealed, sizeof(sealed), opened), "nobody's");
	for (size_t i = 0; i < sizeof(sealed); i++)
	{
		for (int bit = 0; bit < 8; bit++)
		{
			sealed[i] ^= (unsigned char) (1 << bit);
			opens += outbox_cipher_open(key, "signing:7", sealed, sizeof(sealed), opened);
			sealed[i] ^= (unsigned char) (1 << bit);
		}
	}
	ok(opens == 0, "any bit changed: none of %zu opens", 8 * sizeof(sealed));
	for (size_t n = 0; n < sizeof(sealed); n++)
		opens += outbox_cipher_open(key, "signing:7", sealed, n, opened);
	ok(opens == 0, "cut short anywhere");
	ok(outbox_cipher_open(key, "signing:7", sealed, sizeof(sealed), opened) && memcmp(opened, text, sizeof(text)) == 0, "and as it was it opens");
}

static void
keys(void)
{
	static const char *const bad[] = {
		"", "=", "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZQ=", "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZQA", "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZQ==",
		" MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZQ=", "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZQA=\n", "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNk=QA=",
		"MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZ-A=", "3031323334353637383961626364656630313233343536373839616263646500 ",
		"30313233343536373839616263646566303132333435363738396162636465", "303132333435363738396162636465663031323334353637383961626364650g",
	};
	unsigned char read[OUTBOX_KEY_SIZE];
	char		id[OUTBOX_KEY_ID];
	char		other[OUTBOX_KEY_ID];

	ok(outbox_cipher_read_key("MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZQA=", 44, read) && memcmp(read, key, sizeof(key)) == 0, "a key in base64");
	ok(outbox_cipher_read_key("3031323334353637383961626364656630313233343536373839616263646500", 64, read) && memcmp(read, key, sizeof(key)) == 0, "a key in hexadecimal");
	ok(outbox_cipher_read_key("FEFFE9928665731C6D6A8F9467308308feffe9928665731c6d6a8f9467308308", 64, read) && read[0] == 0xfe && read[31] == 0x08, "in either case");
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		ok(!outbox_cipher_read_key(bad[i], strlen(bad[i]), read), "no key: %zu bytes, %.20s", strlen(bad[i]), bad[i]);
	ok(!outbox_cipher_read_key("MDEyMzQ1Njc4OWFiY2RlZjAx\0jM0NTY3ODlhYmNkZQA=", 44, read), "no key: with a NUL");

	ok(outbox_cipher_key_id(key, id) && strlen(id) == 16 && strspn(id, "0123456789abcdef") == 16, "a key id is 16 digits");
	ok(outbox_cipher_key_id(other_key, other) && strcmp(id, other) != 0, "another key has another");
	ok(outbox_cipher_key_id(key, other) && strcmp(id, other) == 0, "the same key the same");
}

int
main(void)
{
	vector();
	round_trips();
	refusals();
	keys();
	return done_testing();
}
