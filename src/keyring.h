/*
 * The keys that secrets are encrypted with: the file that outbox.secret_key_file names.
 */
#ifndef OUTBOX_KEYRING_H
#define OUTBOX_KEYRING_H

#include "cipher.h"

typedef struct OutboxKeyring OutboxKeyring;

/*
 * Reads the file.  Never raises but when out of memory: a file that is not there or not fit is a keyring with a problem and without keys.  It lives in
 * CurrentMemoryContext and goes, wiped, with it, or when closed: soon, for nobody holds keys longer than needed.
 */
extern PGDLLEXPORT OutboxKeyring *outbox_keyring_open(void);
extern PGDLLEXPORT void outbox_keyring_close(OutboxKeyring *keyring);

/* Is a file named at all? */
extern bool outbox_keyring_wanted(void);

/* Why there are no keys, in a sentence that does not tell where the file is; NULL: there are, or no file is named. */
extern PGDLLEXPORT const char *outbox_keyring_problem(const OutboxKeyring *keyring);

/* The key that encrypts, the first of the file; NULL: none. */
extern const unsigned char *outbox_keyring_first(const OutboxKeyring *keyring);

/* The key by its id (outbox_cipher_key_id), NULL: it is not here; and the id by its number, from 0, NULL past the last. */
extern const unsigned char *outbox_keyring_find(const OutboxKeyring *keyring, const char *id);
extern const char *outbox_keyring_id(const OutboxKeyring *keyring, int number);

#endif							/* OUTBOX_KEYRING_H */
