// The Android Gradle Plugin brings Kotlin for Android; the logic's tests run on a plain JVM and need the same version.
plugins {
    id("com.android.application") version "9.0.0" apply false
    id("com.android.library") version "9.0.0" apply false
    id("org.jetbrains.kotlin.jvm") version "2.2.10" apply false
}
