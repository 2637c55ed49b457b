/*
 * The file with the keys.
 *
 * It must lie outside the data directory, so that nothing that copies the data copies the keys with it, and nobody but the server's user may read it (the same
 * conditions as for ssl_key_file).  Keys are read when they are needed and forgotten at once.  They are kept off the heap, in pages of their own that
 * core dumps leave out and that are wiped in every case, an error included.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/memutils.h"

#include "keyring.h"
#include "settings.h"

#define MAX_KEYS 16
#define MAX_FILE 8192

/* What is secret, in its own pages. */
typedef struct Keys
{
	unsigned char key[MAX_KEYS][OUTBOX_KEY_SIZE];
	char		text[MAX_FILE + 1]; /* the file */
} Keys;

struct OutboxKeyring
{
	Keys	   *keys;			/* NULL: closed */
	int			n;
	char		id[MAX_KEYS][OUTBOX_KEY_ID];
	char		problem[128];	/* empty: none */
	MemoryContextCallback callback;
};

static void
forget(void *arg)
{
	OutboxKeyring *keyring = arg;

	if (keyring->keys == NULL)
		return;
	outbox_cipher_wipe(keyring->keys, sizeof(Keys));
	(void) munmap(keyring->keys, sizeof(Keys));
	keyring->keys = NULL;
	keyring->n = 0;
}

static pg_attribute_printf(2, 3) bool
problem(OutboxKeyring *keyring, const char *format,...)
{
	va_list		args;

	va_start(args, format);
	vsnprintf(keyring->problem, sizeof(keyring->problem), format, args);
	va_end(args);
	return false;
}

/* A dump or a base backup must not take the key along with what it opens. */
static bool
is_in_data_directory(const char *path)
{
	char	   *file = realpath(path, NULL);
	char	   *data = realpath(DataDir, NULL);
	bool		inside = true;

	if (file != NULL && data != NULL)
	{
		size_t		n = strlen(data);

		inside = strncmp(file, data, n) == 0 && file[n] == '/';
	}
	free(file);
	free(data);
	return inside;
}

static bool
check_file(OutboxKeyring *keyring, const struct stat *file)
{
	if (!S_ISREG(file->st_mode))
		return problem(keyring, "The secret key file is not a regular file.");
	if (file->st_uid != geteuid() && file->st_uid != 0)
		return problem(keyring, "The secret key file belongs neither to the server's user nor to root.");
	if ((file->st_uid == geteuid() && (file->st_mode & (S_IRWXG | S_IRWXO))) ||
		(file->st_uid == 0 && (file->st_mode & (S_IWGRP | S_IXGRP | S_IRWXO))))
		return problem(keyring, "The secret key file has group or world access; it must have permissions 0600, or 0640 if it belongs to root.");
	if (file->st_size > MAX_FILE)
		return problem(keyring, "The secret key file is larger than %d bytes.", MAX_FILE);
	return true;
}

static bool
read_file(OutboxKeyring *keyring, const char *path)
{
	struct stat file;
	ssize_t		size = 0;
	ssize_t		part = 0;
	int			saved = 0;
	bool		good;
	int			fd = BasicOpenFile(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);	/* a FIFO must not hold us */

	if (fd < 0)
		return problem(keyring, "The secret key file cannot be opened: %s.", strerror(errno));
	if (fstat(fd, &file) != 0)
		good = problem(keyring, "The secret key file cannot be examined: %s.", strerror(errno));
	else
		good = check_file(keyring, &file);
	while (good && (part = read(fd, keyring->keys->text + size, MAX_FILE - size)) > 0)
		size += part;
	saved = errno;
	close(fd);
	if (good && part < 0)
		return problem(keyring, "The secret key file cannot be read: %s.", strerror(saved));
	keyring->keys->text[size] = '\0';
	return good;
}

/* A key a line; empty lines and those that begin with # are left out. */
static bool
read_keys(OutboxKeyring *keyring)
{
	char	   *line = keyring->keys->text;

	for (int number = 1; *line != '\0'; number++)
	{
		size_t		size = strcspn(line, "\n");
		char	   *next = line[size] == '\0' ? line + size : line + size + 1;

		while (size > 0 && strchr(" \t\r", line[size - 1]) != NULL)
			size--;
		if (size > 0 && line[0] != '#')
		{
			if (keyring->n == MAX_KEYS)
				return problem(keyring, "The secret key file has more than %d keys.", MAX_KEYS);
			if (!outbox_cipher_read_key(line, size, keyring->keys->key[keyring->n]))
				return problem(keyring, "Line %d of the secret key file is not a key: 32 bytes as base64 or hexadecimal.", number);
			if (!outbox_cipher_key_id(keyring->keys->key[keyring->n], keyring->id[keyring->n]))
				return problem(keyring, "OpenSSL refused a key of the secret key file.");
			keyring->n++;
		}
		line = next;
	}
	return keyring->n > 0 || problem(keyring, "The secret key file has no key.");
}

bool
outbox_keyring_wanted(void)
{
	return outbox_secret_key_file != NULL && outbox_secret_key_file[0] != '\0';
}

OutboxKeyring *
outbox_keyring_open(void)
{
	OutboxKeyring *keyring = palloc0(sizeof(OutboxKeyring));
	void	   *pages;

	if (!outbox_keyring_wanted())
		return keyring;
	pages = mmap(NULL, sizeof(Keys), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (pages == MAP_FAILED)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory")));
	keyring->keys = pages;
	keyring->callback.func = forget;
	keyring->callback.arg = keyring;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &keyring->callback);

	/* as far as the system lets us: neither to a core file nor to swap */
	(void) madvise(pages, sizeof(Keys), MADV_DONTDUMP);
	(void) mlock(pages, sizeof(Keys));

	if (!read_file(keyring, outbox_secret_key_file) || !read_keys(keyring))
		forget(keyring);
	else if (is_in_data_directory(outbox_secret_key_file))
	{
		problem(keyring, "The secret key file is in the data directory, so that every base backup would contain it.");
		forget(keyring);
	}
	else
		outbox_cipher_wipe(keyring->keys->text, sizeof(keyring->keys->text));
	return keyring;
}

void
outbox_keyring_close(OutboxKeyring *keyring)
{
	forget(keyring);			/* the struct is the context's, with its callback */
}

const char *
outbox_keyring_problem(const OutboxKeyring *keyring)
{
	return keyring->problem[0] == '\0' ? NULL : keyring->problem;
}

const unsigned char *
outbox_keyring_first(const OutboxKeyring *keyring)
{
	return keyring->n == 0 ? NULL : keyring->keys->key[0];
}

const unsigned char *
outbox_keyring_find(const OutboxKeyring *keyring, const char *id)
{
	for (int i = 0; i < keyring->n; i++)
	{
		if (strcmp(keyring->id[i], id) == 0)
			return keyring->keys->key[i];
	}
	return NULL;
}

const char *
outbox_keyring_id(const OutboxKeyring *keyring, int number)
{
	return number < keyring->n ? keyring->id[number] : NULL;
}
