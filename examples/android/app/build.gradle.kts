plugins {
    id("com.android.application")
    id("org.jetbrains.kotlin.android")
}

android {
    namespace = "org.lightningprune.digitpad"
    compileSdk = 35
    defaultConfig {
        applicationId = "org.lightningprune.digitpad"
        minSdk = 23
        targetSdk = 35
        versionCode = 1
        versionName = "1"
        ndk { abiFilters += listOf("arm64-v8a", "x86_64") }
    }
}

kotlin { jvmToolchain(17) }

dependencies { implementation(project(":model")) }
