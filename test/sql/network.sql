-- Where a subscription may lead, and by whose certificates it is verified: what is refused when it is made. (What is refused when it is dialled: test/t/140.)
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS outbox;
RESET client_min_messages;

\pset format unaligned
CREATE FUNCTION try(option text, value text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    message text;
    detail  text;
BEGIN
    IF option = 'url' THEN
        PERFORM outbox.subscribe('tried', value, ports => '{443,8443}');
    ELSE
        PERFORM outbox.subscribe('tried', 'https://example.com/', ca => value);
    END IF;
    PERFORM outbox.unsubscribe('tried');
    RETURN 'accepted';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL;
    RETURN SQLSTATE || ' ' || detail;
END
$$;

-- URLs that two parsers might read in two ways, or that hide where they lead
SELECT left(url, 60) AS url, try('url', url) FROM unnest(ARRAY[
    'https://example.com', 'https://example.com/', 'https://example.com:443/a?b=c', 'https://example.com:8443', 'HTTPS://EXAMPLE.COM/', 'https://example.com./', 'https://example.com?q', 'https://[2001:db8::1]:8443/',
    'https://2130706433/', 'https://0x7f.1/', 'https://017700000001/', 'https://127.1/', 'https://[::ffff:127.0.0.1]/', 'https://localhost/',
    'http://example.com/', 'https://example.com:80/', 'https://example.com:0/', 'https://example.com:99999/', 'https://example.com:/', 'https://example.com:+443/', 'https://example.com:443:443/', 'https://example.com:443x/',
    'https://user@example.com/', 'https://user:password@example.com/', 'https://@example.com/', 'https://example.com:443@127.0.0.1/', 'https://127.0.0.1#@example.com/', 'https://127.0.0.1?@example.com/',
    'https://127.0.0.1\@example.com/', 'https://127.0.0.1\.example.com/', 'https:/example.com/', 'https:///example.com/', 'https:example.com', '//example.com/', 'example.com', 'https://', 'https:///', '',
    'https://%31%32%37.0.0.1/', 'https://127.0.0.1%00.example.com/', 'https://loc%61lhost/', 'https://[fe80::1%25eth0]/', 'https://[fe80::1%eth0]/', 'https://[127.0.0.1/', 'https://[]/', 'https://[::g]/', 'https://[v1.a]/',
    U&'https://\FF11\FF12\FF17.0.0.1/', U&'https://127\30020\30020\30021/', U&'https://\FF4C\FF4Fcalhost/', U&'https://example.com/\00E4', E'https://example.com/\nX: y', E'https://example.com\t/', ' https://example.com/', 'https://exa mple.com/',
    'https://.example.com/', 'https://-example.com/', 'https://example.com,127.0.0.1/', 'https://example.com;127.0.0.1/', 'https://*/', 'https://example.com/{a}', 'https://example.com/[a]', 'file:///etc/passwd', 'gopher://example.com/', 'unix:///tmp/x', 'javascript:alert(1)',
    'https://example.com:' || repeat('0', 10) || '443/', 'https://' || repeat('a', 255) || '/', 'https://example.com/' || repeat('a', 2029)]) AS url;

-- Certificates: complete blocks of PEM, and nothing secret among them
SELECT what, try('ca', ca) FROM (VALUES
    ('one',              E'-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----'),
    ('one, from DOS',    E'-----BEGIN CERTIFICATE-----\r\nMAMC\r\nAQE=\r\n-----END CERTIFICATE-----\r\n'),
    ('two with remarks', E'first\n-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----\nsecond\n-----BEGIN CERTIFICATE-----\nMAMCAQI=\n-----END CERTIFICATE-----\n'),
    ('a long one',       E'-----BEGIN CERTIFICATE-----\n' || encode('\x30820400' || decode(repeat('00', 1024), 'hex'), 'base64') || E'\n-----END CERTIFICATE-----'),
    ('nothing',          ''),
    ('a file name',      '/etc/ssl/certs/ca.pem'),
    ('no end',           E'-----BEGIN CERTIFICATE-----\nMAMCAQE=\n'),
    ('the second: no end', E'-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----\n-----BEGIN CERTIFICATE-----\nMAMCAQI=\n'),
    ('on one line',      '-----BEGIN CERTIFICATE----- MAMCAQE= -----END CERTIFICATE-----'),
    ('a line too long',  E'-----BEGIN CERTIFICATE-----\n' || translate(encode('\x30820400' || decode(repeat('00', 1024), 'hex'), 'base64'), E'\n', '') || E'\n-----END CERTIFICATE-----'),
    ('no base64',        E'-----BEGIN CERTIFICATE-----\nMAMCAQE*\n-----END CERTIFICATE-----'),
    ('bad base64',       E'-----BEGIN CERTIFICATE-----\nMAMCA\n-----END CERTIFICATE-----'),
    ('cut off',          E'-----BEGIN CERTIFICATE-----\nMAMCAQ==\n-----END CERTIFICATE-----'),
    ('too much',         E'-----BEGIN CERTIFICATE-----\nMAMCAQEB\n-----END CERTIFICATE-----'),
    ('no sequence',      E'-----BEGIN CERTIFICATE-----\nAgMCAQE=\n-----END CERTIFICATE-----'),
    ('the second: cut off', E'-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----\n-----BEGIN CERTIFICATE-----\nMAMC\n-----END CERTIFICATE-----\n'),
    ('a request',        E'-----BEGIN CERTIFICATE REQUEST-----\nMAMCAQE=\n-----END CERTIFICATE REQUEST-----'),
    ('a private key',    E'-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----\n-----BEGIN EC PRIVATE KEY-----\nMAMCAQI=\n-----END EC PRIVATE KEY-----\n'),
    ('64 kB',            E'-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----' || repeat(' ', 65536))) AS cases (what, ca);

DROP FUNCTION try(text, text);
