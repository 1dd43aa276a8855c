// Signatures of JUnit 4.13 that the tests on a phone use.
package org.junit

annotation class Test

object Assert {
    @JvmStatic fun assertEquals(expected: Any?, actual: Any?) = Unit

    @JvmStatic fun assertNotEquals(unexpected: Any?, actual: Any?) = Unit

    @JvmStatic fun assertTrue(message: String, condition: Boolean) = Unit
}
