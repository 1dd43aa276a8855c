plugins {
    id("com.android.library")
    id("org.jetbrains.kotlin.android")
}

android {
    namespace = "org.lightningprune"
    compileSdk = 35
    defaultConfig { minSdk = 23 }
    sourceSets["main"].apply {
        manifest.srcFile("AndroidManifest.xml")
        kotlin.setSrcDirs(listOf("logic", "runtime"))
        assets.setSrcDirs(listOf("assets"))
    }
}

kotlin { jvmToolchain(17) }

dependencies { api("org.pytorch:executorch-android:1.4.1") }
