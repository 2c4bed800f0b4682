import { t, type Key } from "../i18n";

const known: Record<string, Key> = {
    M_USER_IN_USE: "problem.nameTaken",
    M_INVALID_USERNAME: "problem.nameInvalid",
    M_TOO_LARGE: "problem.tooLarge",
    M_UNKNOWN_TOKEN: "problem.signedOut",
};

/** Seconds after which a refused request may be made again, if the server said so. */
export function retryAfter(error: any): number | undefined {
    if (error?.httpStatus !== 429) return undefined;
    const header = Number(error.httpHeaders?.get?.("Retry-After"));
    return Math.max(1, Math.ceil(header || Number(error.data?.retry_after_ms ?? 5000) / 1000));
}

/** Whether a request failed because the server could not be reached, so that it is worth trying again later. */
export function unreachable(error: any): boolean {
    // The SDK says that an upload was aborted when its connection broke, and nothing here ever aborts one.
    if (["ConnectionError", "AbortError"].includes(error?.name) || error?.message === "Timeout") return true;
    return error?.message === "Failed to fetch" || [502, 503, 504].includes(error?.httpStatus);
}

/** What went wrong, as a sentence in the person's language. The server's own words are kept where there are none. */
export function problem(error: any): string {
    const seconds = retryAfter(error);
    if (seconds) return t("problem.busy", { seconds });
    const code = error?.data?.errcode ?? error?.errcode;
    if (known[code]) return t(known[code], { reason: error.data?.error ?? "" });
    if (error?.data?.error) return t("problem.refused", { reason: error.data.error });
    if (unreachable(error)) return t("problem.unreachable");
    return error?.message ?? String(error);
}
